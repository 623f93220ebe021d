"""Our own deterministic shop: products, queries, labels that follow from the structure, rationales."""
