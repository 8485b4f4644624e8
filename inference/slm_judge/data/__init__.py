"""Tables, items, splits and predictions: the one way from a row to an item."""

ITEM_ID = "item_id"
"""Column that names the item, where nobody says otherwise."""
