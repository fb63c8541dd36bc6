"""The widgets that jobs and lists of jobs show themselves by, one .py and one .js each (anywidget)."""
