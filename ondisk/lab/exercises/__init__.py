"""The exercises: ``check`` says what is wrong without giving the answer, ``hint`` helps.

==============  =============================================
``check``       how an answer is looked at, and the hints
``referee``     points for the answer that ``check`` was shown last
``answers``     kinds of answers: a function, a number, some names
``chapter_NN``  the exercises of notebook NN
==============  =============================================

A chapter is imported when its first exercise is asked for. Imports the library and the rest of the
lab; imported by the notebooks.

Invariant: whatever the answer is, ``check`` answers with a sentence and raises nothing.
"""
