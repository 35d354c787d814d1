"""Draw what the method does.    python scripts/visualize.py FIGURE --image FILE --png FILE

python scripts/visualize.py attention-vision ...      attention over a picture
python scripts/visualize.py attention-language ...    the attention matrix over a prompt
python scripts/visualize.py tokens ...                candidates for each token of an answer
"""

from causalmm.figures.command import main

if __name__ == "__main__":
    raise SystemExit(main())
