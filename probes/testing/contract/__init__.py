"""The contract suite: is every probe right on a model?"""
