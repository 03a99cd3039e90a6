"""AccelGen: a language-model server that keeps each request's service-level objective."""

__version__ = "0.1.0"
