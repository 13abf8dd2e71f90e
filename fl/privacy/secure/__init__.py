"""Secure aggregation: the server learns the sum of a cohort's updates, and no single update.

section.py       the section `secure_aggregation:`          quantiser.py   updates -> integers, and the modulus
protocol.py      who shares masks with whom, thresholds     secure_sum.py  the reduction: quantise, mask, add
secagg.py, secagg_plus.py                                   session.py     one exchange: keys, shares, unmasking
keys.py, shamir.py, masks.py   cryptography                 messages.py    bytes of the messages
"""

DEFAULTS = {"protocol": "secagg"}  # kind -> part of a configuration that names none
