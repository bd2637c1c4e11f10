"""The chaos campaign: what is promised to whoever runs experiments on a machine that may vanish, held to by trying to break it.

The promise. Whatever happens to a process or to the files of a run (killed anywhere, signalled, files damaged or exchanged, calls to the
file system that fail, a full disk, several processes on one run, a lock or folder removed under them), the same command given again ends

- with the weights, metrics and status of a run that nothing disturbed, bit by bit;
- or in one line that says what is wrong, and, once what stands in the way has been removed, with those results;
- never with other results, whether somebody is told or not; never from zero without a line; never in a traceback; never hanging.

How it is tried. The campaign knows the command line and the files of a run, as README describes them, and nothing else. Commands run in
real processes, forked from one that has imported everything, so that a run takes a fraction of a second. In the harmed process the calls
that open, write, synchronise, rename, remove and lock files are watched, and at the n-th of one sort on one kind of file it is killed,
fails with an errno, gets a signal, or waits while others work (`watch`). Files are damaged from outside (`damage`). What is tried is a
function of the seed and the event's number (`events`), what came out is compared with an undisturbed reference (`judge`), and
`campaign` runs many and makes a table.

    python -m tests.chaos                        # some 1,200 events; given again after a kill, it goes on where it was
    python -m tests.chaos --seed 3 --events 5000
    python -m tests.chaos --seed 0 --only 137    # one event, with everything the program said
"""
