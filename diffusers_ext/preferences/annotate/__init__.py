"""The annotation app: a page on this machine where people rate, flag and rank a prompt's images.

`items` reads what is to be judged, `store` keeps what was judged, `session` is the one between them, `server` puts it
on HTTP, and `page/` is what the browser runs: plain HTML, CSS and modules, nothing from elsewhere.
"""
