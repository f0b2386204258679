"""A page to look at: a talk in either class, how fast it comes, and the KV pool under it.

GET /                    index.html, and beside it page.css, page.js, icon.svg
GET /snapshot            what the page draws, ten times a second at most
"""
