"""
Many items at once: `dsr batch`.

    source ─ plan (one line per item) ─ chunks ─ workers ─ finished chunks ─ store (parts, then results.parquet)

A worker is an `EndpointHandler` in a process of its own, here or on Ray, made from plain settings. The process that
drives them imports no model, holds a few chunks at a time, and alone writes to the output.
"""
