"""The page by which a person looks at the chips of a dataset, from the file system and without a server.

`packs` renders the pictures, `facts` collects what the tables know of the chips, `assets` writes both beside the page,
which is in `page/`. All of it reaches the page by script elements, because browsers refuse to fetch local files.
"""
