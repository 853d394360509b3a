BEGIN TRANSACTION;
CREATE TABLE logs (
            projid TEXT,
            tstamp TEXT,
            filename TEXT,
            ctx TEXT,
            value_name TEXT,
            value TEXT,
            value_type INTEGER,
            source TEXT NOT NULL DEFAULT 'forward'
        );
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py',NULL,'lr','0.01',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py',NULL,'epochs','3',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py',NULL,'optimizer','adam',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py',NULL,'device','cpu',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py',NULL,'time::setup','1.564015107999694',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}, {"name": "step", "iteration": 0, "value": "0"}]','loss','1.98',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}, {"name": "step", "iteration": 0, "value": "0"}]','grad_norm','1.0',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}, {"name": "step", "iteration": 1, "value": "1"}]','loss','1.9602',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}, {"name": "step", "iteration": 2, "value": "2"}]','loss','1.9405979999999998',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}, {"name": "step", "iteration": 2, "value": "2"}]','grad_norm','3.0',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}, {"name": "step", "iteration": 3, "value": "3"}]','loss','1.92119202',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}]','time::iter','0.0009238492500571738',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}]','time::iter::std','0.001593956070889318',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}]','time::iter::n','4',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}]','time::loop','0.004296049999993556',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}]','val_acc','0.5',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}]','confusion','[[3, 1], [0, 0]]',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}]','good','False',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}, {"name": "label", "iteration": 0, "value": "cat"}]','recall','0.25',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}, {"name": "label", "iteration": 1, "value": "dog"}]','recall','0.75',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}]','time::iter','8.633849984107655e-05',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}]','time::iter::std','1.0670948451113384e-05',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}]','time::iter::n','2',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}]','time::loop','0.00046650200010844856',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 0, "value": "0"}]','io::stdout','epoch 0 done',2,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}, {"name": "step", "iteration": 0, "value": "0"}]','loss','1.9019800997999998',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}, {"name": "step", "iteration": 0, "value": "0"}]','grad_norm','11.0',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}, {"name": "step", "iteration": 1, "value": "1"}]','loss','1.8829602988019998',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}, {"name": "step", "iteration": 2, "value": "2"}]','loss','1.8641306958139798',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}, {"name": "step", "iteration": 2, "value": "2"}]','grad_norm','13.0',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}, {"name": "step", "iteration": 3, "value": "3"}]','loss','1.84548938885584',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}]','time::iter','0.0001315815001134979',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}]','time::iter::std','7.685153249580873e-05',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}]','time::iter::n','4',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}]','time::loop','0.0007143819998418621',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}]','val_acc','0.6',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}]','confusion','[[3, 1], [0, 1]]',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}]','good','False',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}, {"name": "label", "iteration": 0, "value": "cat"}]','recall','0.25',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}, {"name": "label", "iteration": 1, "value": "dog"}]','recall','0.75',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}]','time::iter','6.816000018261548e-05',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}]','time::iter::std','2.86378272587742e-06',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}]','time::iter::n','2',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}]','time::loop','0.00041268199993282906',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 1, "value": "1"}]','io::stdout','epoch 1 done',2,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}, {"name": "step", "iteration": 0, "value": "0"}]','loss','1.8270344949672814',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}, {"name": "step", "iteration": 0, "value": "0"}]','grad_norm','21.0',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}, {"name": "step", "iteration": 1, "value": "1"}]','loss','1.8087641500176086',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}, {"name": "step", "iteration": 2, "value": "2"}]','loss','1.7906765085174325',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}, {"name": "step", "iteration": 2, "value": "2"}]','grad_norm','23.0',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}, {"name": "step", "iteration": 3, "value": "3"}]','loss','1.7727697434322582',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}]','time::iter','0.0001434519999747863',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}]','time::iter::std','0.00010194456669507223',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}]','time::iter::n','4',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}]','time::loop','0.0007390209998447972',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}]','val_acc','0.7',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}]','confusion','[[3, 1], [0, 2]]',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}]','good','True',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}, {"name": "label", "iteration": 0, "value": "cat"}]','recall','0.25',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}, {"name": "label", "iteration": 1, "value": "dog"}]','recall','0.75',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}]','time::iter','7.36370000140596e-05',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}]','time::iter::std','7.443006046958426e-06',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}]','time::iter::n','2',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}]','time::loop','0.00028964200009795604',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py','[{"name": "epoch", "iteration": 2, "value": "2"}]','io::stdout','epoch 2 done',2,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py',NULL,'time::iter','0.0027038786665798398',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py',NULL,'time::iter::std','0.0022903884751769897',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py',NULL,'time::iter::n','3',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py',NULL,'time::loop','0.008957043000009435',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py',NULL,'best','{''epoch'': 2, ''acc'': 0.7}',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py',NULL,'nothing','None',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py',NULL,'worst','nan',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py',NULL,'when','2024-05-01',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py',NULL,'time::script','1.5813875240000925',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:44.479016','train.py',NULL,'time::teardown','0.008413991999987047',3,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:49.591339','flat.py',NULL,'documents','12',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:49.591339','flat.py',NULL,'title','a b',1,'forward');
INSERT INTO "logs" VALUES('proj4','2026-11-28T01:17:49.591339','flat.py',NULL,'time::script','1.686550041999908',3,'forward');
COMMIT;
