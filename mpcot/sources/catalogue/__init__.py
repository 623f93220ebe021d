"""An invented shop: its products, queries, labels and rationales, the same for the same seed."""
