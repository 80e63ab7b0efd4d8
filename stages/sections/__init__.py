"""Sections of the report: one file for each problem, which turns its runs into tables, galleries
and charts as data (`model`); the templates turn that into a page."""
