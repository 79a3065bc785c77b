"""The words for axes: one word each, for the whole package.

Every public tensor is annotated with these words (jaxtyping), and every reshape is written with
them (einops). An axis is never optional and never goes by a second name.

prompt      one text of a batch
position    a token's place in the padded batch, counted from the left
query, key  the position that attends, and the position attended to
layer       a transformer block, counted from 0
head        an attention head that asks (a query head), counted from 0 within its layer
kv_head     a head that is read (a key/value head); several heads may share one
d_model     the residual stream
d_head      the inside of one head
vocab       the tokens a model can write
role        what a stretch of text does in the query pattern, such as `x`, `op` or `ask`
role_key    the role attended to, where `role` is the one that attends
answer      a read-out: the number, or the noun
outcome     one of the words that a read-out may yield
contrast    the slot that a counterfactual changes
component   a head or an MLP, as matching sees it
model       one of several relatives or null models
"""
