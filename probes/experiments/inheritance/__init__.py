"""What students inherit from their teacher, against equally accurate students of another."""
