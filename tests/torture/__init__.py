"""Thousands of keyed sends through every door while Twilio and AWS fail, and a verdict from independent records.

    make torture             # all of it; SHORT=1 for a small one, SEED=7 to repeat one
    .venv/bin/python -m tests.torture.verdict .local/torture/<run>   # judge a run again, from its files alone

`schedule` says which key is sent by whom, and what goes wrong; `setting` starts the stack behind the faults; `run`
and `channels` send; `drain` takes down what Twilio, the bus and the failed queue have; `naive` is the client that
the faults must defeat; `verdict` judges.
"""
