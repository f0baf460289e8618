// What a dashboard file of ours must look like: Grafana's published types, put together per kind
// of panel, since @grafana/schema itself leaves a panel's `options` and `custom` open.

import type * as raw from '@grafana/schema';
import type { FieldConfig as TableField, Options as Table } from '@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen';
import type { FieldConfig as HeatmapField, Options as Heatmap } from '@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen';
import type { FieldConfig as TimeField, Options as Time } from '@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';
import type { Options as Bars } from '@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen';
import type { Options as Text } from '@grafana/schema/dist/esm/raw/composable/text/panelcfg/x/TextPanelCfg_types.gen';
import type { Options as Stat } from '@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen';

// JSON has strings where the types have enumerations: the same values are allowed, no others.
type Plain<T> = T extends string ? `${T}`
  : T extends number | boolean | null | undefined ? T
  : T extends Array<infer Item> ? Array<Plain<Item>>
  : T extends object ? { [Key in keyof T]: Plain<T[Key]> }
  : T;

type Source = { type: 'prometheus'; uid: 'prometheus' };

// The Prometheus data source's part of a query.
interface Query extends raw.DataQuery {
  datasource: Source;
  expr: string;
  legendFormat: string;
  editorMode: 'code' | 'builder';
  format: 'time_series' | 'table' | 'heatmap';
  instant: boolean;
  range: boolean;
  exemplar: boolean;
}

type Field<Custom> = Omit<Plain<raw.FieldConfig>, 'custom' | 'unit'> & { custom?: Plain<Custom> } & { unit?: string };

type PanelOf<Kind extends string, Options, Custom> = Omit<
  Plain<raw.Panel>, 'type' | 'options' | 'fieldConfig' | 'targets' | 'datasource'
> & {
  id: number;
  type: Kind;
  title: string;
  description: string;
  datasource: Source;
  gridPos: raw.GridPos;
  options: Plain<Options>;
  targets: Query[];
  fieldConfig: Omit<Plain<raw.FieldConfigSource>, 'defaults'> & { defaults: Field<Custom> };
};

type Words = Omit<PanelOf<'text', Text, never>, 'targets' | 'datasource' | 'fieldConfig'> & {
  fieldConfig?: raw.FieldConfigSource;
};

type Row = Omit<Plain<raw.RowPanel>, 'panels'> & { panels: Panel[] };

type Panel =
  | PanelOf<'stat', Stat, never>
  | PanelOf<'table', Table, TableField>
  | PanelOf<'bargauge', Bars, never>
  | PanelOf<'timeseries', Time, TimeField>
  | PanelOf<'heatmap', Heatmap, HeatmapField>
  | Words;

// The Prometheus data source's annotations, a mark for each sample.
interface Event extends Omit<Plain<raw.AnnotationQuery>, 'datasource'> {
  datasource: Source;
  expr: string;
  step: string;
  titleFormat: string;
  textFormat: string;
}

export type Dashboard = Omit<Plain<raw.Dashboard>, 'panels' | 'annotations'> & {
  annotations: { list: Event[] };
  uid: string;
  title: string;
  description: string;
  panels: Array<Panel | Row>;
};
