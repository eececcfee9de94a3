"""What a report shows of a run: the 2-D map, tables of cameras, ranked lists, cluster sizes, and whether to trust the result."""
