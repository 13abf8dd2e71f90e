"""`fl report`: one HTML file that shows runs, their costs, their clients, and what a method has kept.

section.py    what a section is: a title, and charts, tables and sentences        sections/  the sections of the page
runs.py       the runs that a section looks at                                    states.py  what runs have kept
traces.py     charts for plotly          write.py  the HTML file and the figures, from page.html, page.css and page.js
"""
