"""Pictures: values go in, SVG and a table come out.

===========  =======================================================
``cluster``  the replicas, their logs and links; what all share
``lag``      how far each replica is behind, over time
``history``  what clients saw, with the verdict
``crash``    what crashes left: the index against the data
``plots``    what was recorded, by matplotlib
===========  =======================================================

Imports what it draws (``observe``, ``linearizability``, results of ``experiments``); imported by
the rest of the lab.

Invariant: no widget, no clock, no cluster: the same values give the same picture, which says them
as text, too."""
