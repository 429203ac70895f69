"""What a dataset says of itself to those who receive it.

The dataset card (`card`), whose text is in `templates/`, and metadata in JSON-LD (`croissant`), by the facts that both
share (`facts`). `card_assets` declares the stages.
"""
