"""The report's parts: reading a run, its sections (one module each), inline plots, and the templates of the page."""
