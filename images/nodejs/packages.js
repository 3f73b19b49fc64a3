// Prints packages.json: the version of Node.js and of every package below the folder given.
'use strict';
const fs = require('node:fs');
const path = require('node:path');

const root = process.argv[2];
const folders = fs.readdirSync(root).flatMap((name) =>
  name.startsWith('@') ? fs.readdirSync(path.join(root, name)).map((inner) => path.join(name, inner)) : [name]);
const packages = folders.sort().map((folder) => {
  const { name, version } = JSON.parse(fs.readFileSync(path.join(root, folder, 'package.json'), 'utf8'));
  return { name, version };
});
console.log(JSON.stringify({ version: process.versions.node, packages }));
