"""Tables and plots that several pages share, by what they show."""
