"""Edge attribution, circuits and their faithfulness."""
