"""The sampling loop, and sampling of tables of rows."""
