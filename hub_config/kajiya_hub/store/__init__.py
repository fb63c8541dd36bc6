"""Where jobs are remembered: SQLAlchemy Core on SQLite or PostgreSQL, and the folders beside it."""
