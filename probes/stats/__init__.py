"""Statistics that know no model: intervals, paired tests, power, multiple testing."""
