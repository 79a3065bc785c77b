"""Representational similarity of two models: CKA, Procrustes, predictivity."""
