"""The desk: jobs, history, library and training behind the studio's pages; no browser and no terminal in it."""
