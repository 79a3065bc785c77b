"""The claims H1a to H5 on the shared circuit of a query pattern."""
