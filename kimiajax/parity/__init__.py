"""The same images through this project's networks and a reference framework's, compared stage by stage.

job.py              what both sides compute, as a folder of plain files
ours.py             this project's side, in this process
keras_reference.py  the reference, each a program of its own that knows nothing of this project's networks
torch_reference.py
certificate.py      the comparison, its bounds and its verdict; certificate_text.py, how it is told
run.py              from the command line's settings, config.py, to the certificate
"""
