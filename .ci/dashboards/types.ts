// The types of Grafana that the dashboards are checked against. .ci/setup-dashboards generates a JSON Schema from them.
import * as dashboard from './node_modules/@grafana/schema/dist/types/raw/dashboard/x/types.gen';
import * as barchart from './node_modules/@grafana/schema/dist/types/raw/composable/barchart/panelcfg/x/types.gen';
import * as stat from './node_modules/@grafana/schema/dist/types/raw/composable/stat/panelcfg/x/types.gen';
import * as table from './node_modules/@grafana/schema/dist/types/raw/composable/table/panelcfg/x/types.gen';
import * as timeseries from './node_modules/@grafana/schema/dist/types/raw/composable/timeseries/panelcfg/x/types.gen';

export interface Checked {
  dashboard: dashboard.Dashboard;
  'options.barchart': barchart.Options;
  'custom.barchart': barchart.FieldConfig;
  'options.stat': stat.Options;
  'options.table': table.Options;
  'custom.table': table.FieldConfig;
  'options.timeseries': timeseries.Options;
  'custom.timeseries': timeseries.FieldConfig;
}
