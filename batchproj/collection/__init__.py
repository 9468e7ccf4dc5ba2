"""What was done, what is live and what is left to do.

plan.py      listing against the live manifest -> units of work
unit.py      a unit's inputs, outputs and done-record
snapshot.py  one visible state: the exact list of Parquet parts
manifest.py  what became of every item: a whole file and what later runs changed
commit.py    finished units -> the next snapshot, every count checked
ledger.py    what is kept about finished runs
lease.py     one run at a time: who holds the collection, and what he committed
layout.py    the names of all files in a collection
"""
