// What the typescript image promises to run.
const assert: typeof import('node:assert') = require('node:assert');

type Pair<T> = { first: T; second: T };
const pair: Pair<number> = { first: 20, second: 22 };
assert.strictEqual(pair.first + pair.second satisfies number, 42);
