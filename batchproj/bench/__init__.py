"""`batchproj bench`: how fast this is on this machine, beside what else there is, with the same weights.

    corpus       what items are made of, from seeds          workloads    folders of them, with a manifest
    store        a local S3 with one of them in it           cached       a collection to be projected again
    models       the builtin's weights, as anyone loads them
    contender    what a contender is told and what it leaves behind
    contenders/  one file each, run as a process of its own
    calibration  a matrix product, so that a machine that is busy with something else is noticed
    parity       no time without the right vectors           flops        arithmetic that an input needs
    rounds       fresh processes, rotated and repeated       figures      ratios of rounds
    benchmark    all of it, for one workload after another   table, picture    how it is shown

Nothing of the package but `cli` imports it, and it is no part of a run.
"""
