// node check.mjs SCHEMA_FOLDER DASHBOARD...: holds dashboards against the schema that .ci/setup-dashboards made.
// Prints one line a violation; exit 1 if there is one.
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

let bad = 0;
function complain(file, where, errors) {
  for (const e of errors) {
    bad += 1;
    console.log(`${file}: ${where}${e.instancePath} ${e.message} ${JSON.stringify(e.params)}`);
  }
}

function check(file, name, where, value) {
  const valid = checks[name];
  if (!valid(value)) {
    complain(file, where, valid.errors);
  }
}

// A panel's options and custom field settings are free-form in the dashboard's own type: each kind has its types.
function checkPanels(file, panels) {
  for (const panel of panels) {
    if (panel.type === 'row') {
      checkPanels(file, panel.panels);
    } else if (!checks[`options.${panel.type}`]) {
      complain(file, panel.title, [{ instancePath: '', message: `no types for panels of type ${panel.type}`, params: {} }]);
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
process.exit(bad === 0 ? 0 : 1);
