"""One file a method: the published functions called beside attnguide's own. See scripts/compare_references.py."""
