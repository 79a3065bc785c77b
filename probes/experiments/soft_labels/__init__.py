"""Soft labels against hard labels."""
