"""The claims H1 to H5 on the shared circuit of a query pattern."""
