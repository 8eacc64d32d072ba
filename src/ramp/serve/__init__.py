"""A trained model put to use elsewhere: behind an HTTP API, on a page, in the files that other tools open."""
