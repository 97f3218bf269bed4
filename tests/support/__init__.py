"What the tests share: house rules, the naive definition of each feature, servers, processes, waiting."
