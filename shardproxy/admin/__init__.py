"""The admin port: health, metrics and a page. It shows, and never acts."""
