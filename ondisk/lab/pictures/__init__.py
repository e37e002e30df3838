"""Pictures: values go in, SVG and a table come out.

============  ============================================================
``drawing``   what all are made of: text, lines, marks, tables, words
``saving``    what is saved of one: SVG and CSV
``figures``   figures by matplotlib
``cluster``   the replicas, their logs and links, in words and as a table
``living``    the same as plain data, which the panel's browser part draws;
              ``timeline``: when what happened; ``recording``: a page that
              plays many of them
``messages``  who told whom what
``lag``       how far each replica is behind, live
``lag_plot``  the same when an experiment is over
``costs``     what puts cost
``failures``  what clients heard when a leader failed
``reads``     what reads cost, by rounds and by leases
``history``   what clients saw, with the verdict: drawn; ``history_words``: said;
              ``history_layout``: where each operation is
``crash``     what crashes left: the index against the data
``sizes``     logs, states and views in bytes
``catch_up``  a replica that catches up by a snapshot
``trace``     a moment of a simulated run, and the events around it
``runs``      what came of simulated runs
``rules``     what they are judged by
============  ============================================================

Imports what it draws (``observe``, ``linearizability``, ``simulation``, results of ``experiments``);
imported by the rest of the lab.

Invariant: no widget, no clock, no cluster: the same values give the same picture, which says them
as text, too."""
