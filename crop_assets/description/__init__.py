"""Files that describe a dataset to those who receive it.

What belongs to it (`files`), its fingerprint (`fingerprint`), a STAC catalogue (`stac`), the dataset card (`card`), and
metadata in JSON-LD (`croissant`). `assets` declares the stages; the modules beside it are pure logic.
"""
