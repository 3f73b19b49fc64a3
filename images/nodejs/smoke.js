// What the nodejs image promises to run.
'use strict';
const assert = require('node:assert');
const axios = require('axios');

assert.strictEqual(process.versions.node.split('.')[0], '24');
assert.ok(process.release.lts);
assert.strictEqual(typeof axios.get, 'function');
assert.strictEqual(new Intl.DateTimeFormat('de', { month: 'long', timeZone: 'Asia/Tokyo' }).format(0), 'Januar');
