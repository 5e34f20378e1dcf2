"""The token stream: every batch is a pure function of (stream state, step).

    corpora.Document                 ordered text and image segments
        |  template.py               of a conversation: who says what, as text
        |  encode.py                 ids, image slots and scored targets in one pass
    TokenSequence                    <s> <image> L slots </image> text ... </s>
        |  measure.py                read and tokenised once, in parts, by several processes
    TokenLengths                     lengths.py: of a whole corpus, stored beside its index
        |  pack.py                   planned once, from lengths alone (pool.py: compiled)
    PackPlan                         plan.py: row -> pieces (sample, start, stop), on disk
        |  permute.py                epoch -> order of rows, any position in constant time
        |  mixture.py                row g of the run -> (source, that source's row number)
        |  stream.py                 step -> global rows -> this rank's rows
    Batch                            batch.py: every tensor with dtype and shape
        |  loader.py                 (step, [Batch per micro-step]), prefetched; resume is a seek

Nothing in the chain keeps a position: step in, rows out. So the rows of a step are the same on 1, 2
or 512 ranks, and starting at step s costs what starting at step 0 costs.
"""
