// node check.mjs SCHEMA_FOLDER DASHBOARD...: validates dashboards against the schema from .ci/setup-dashboards.
// Prints one line per violation. Exits with 1 if there is any.
import fs from 'node:fs';
import path from 'node:path';
import { createRequire } from 'node:module';

const [folder, ...files] = process.argv.slice(2);
const { Ajv } = createRequire(path.resolve(folder, 'package.json'))('ajv');
const schema = JSON.parse(fs.readFileSync(path.join(folder, 'schema.json'), 'utf8'));
const ajv = new Ajv({ allErrors: true, strict: false });
const checks = Object.fromEntries(
  Object.entries(schema.definitions.Checked.properties).map(([name, s]) => [name, ajv.compile({ ...s, definitions: schema.definitions })])
);

let violations = 0;
function report(file, where, errors) {
  for (const e of errors) {
    violations += 1;
    console.log(`${file}: ${where}${e.instancePath} ${e.message} ${JSON.stringify(e.params)}`);
  }
}

function check(file, name, where, value) {
  const valid = checks[name];
  if (!valid(value)) {
    report(file, where, valid.errors);
  }
}

// Checks panels. The dashboard type allows any options and custom field settings; their types depend on the panel type.
function checkPanels(file, panels) {
  for (const panel of panels) {
    if (panel.type === 'row') {
      checkPanels(file, panel.panels);
    } else if (!checks[`options.${panel.type}`]) {
      report(file, panel.title, [{ instancePath: '', message: `no schema for panels of type ${panel.type}; add it to types.ts`, params: {} }]);
    } else {
      check(file, `options.${panel.type}`, `${panel.title}: options`, panel.options);
      if (checks[`custom.${panel.type}`]) {
        check(file, `custom.${panel.type}`, `${panel.title}: custom`, panel.fieldConfig.defaults.custom);
      }
    }
  }
}

for (const file of files) {
  const dashboard = JSON.parse(fs.readFileSync(file, 'utf8'));
  check(file, 'dashboard', 'dashboard', dashboard);
  checkPanels(file, dashboard.panels);
}
process.exit(violations === 0 ? 0 : 1);
