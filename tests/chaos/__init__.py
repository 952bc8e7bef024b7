"""Thousands of keyed sends and of webhooks while Twilio and AWS fail, and a verdict from independent records.

    make chaos               # three seeds; SHORT=1 for a small run, SEED=7 to repeat one
    .venv/bin/python -m tests.chaos.verdict .local/chaos/<run>...   # judge runs again, from their files alone

`schedule` says which key is sent by whom, and which faults hit it. `setting` starts the stack behind the faults. `run`
and `channels` send. `drain` records what Twilio, the bus and the failed queue have, and `verdict` judges.
`webhooks` says which webhooks are delivered, and which faults hit each. `deliver` delivers them as Twilio does, and
`published` judges them. `naive` has the client and the receiver that the faults must defeat.
`lost` measures, apart from that, what a lost answer costs.
"""
