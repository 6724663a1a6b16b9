def render_report(path, metrics): return "<html></html>"
