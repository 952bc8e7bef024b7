"""Thousands of keyed sends and of webhooks while Twilio and AWS fail, and a verdict from independent records.

    make torture             # all of it; SHORT=1 for a small one, SEED=7 to repeat one
    .venv/bin/python -m tests.torture.verdict .local/torture/<run>   # judge a run again, from its files alone

`schedule` says which key is sent by whom, and what goes wrong; `setting` starts the stack behind the faults; `run`
and `channels` send; `drain` takes down what Twilio, the bus and the failed queue have; `verdict` judges.
`webhooks` says which are delivered and what goes wrong with each; `deliver` delivers them as Twilio does; `published`
judges them. `naive` are the client and the receiver that the faults must defeat.
`rotation` is for another test: sends and webhooks while credentials are rotated.
"""
