"""Target maps from recorded attention of words, as masks and as files that people can look at and edit."""
